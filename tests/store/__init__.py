"""Tests of the store; they mirror the package ``cowstore``."""
