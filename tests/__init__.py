"""Tests of the union filesystem; they mirror the source tree."""
