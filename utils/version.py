"""The version of this program: the one place."""

VERSION = "2.0.0.dev0"
