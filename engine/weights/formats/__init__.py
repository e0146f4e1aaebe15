"""Stored weight formats, one file each."""
