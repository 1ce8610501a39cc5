"""The commands of ``cowstore``."""
