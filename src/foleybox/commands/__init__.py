"""One file per command of the studio: arguments, calls to the library, files and messages."""
