"""foleybox: name a category, get as many different foley sounds as you like."""

__version__ = "0.1.0"
