"""The commands of the command line, as click commands; a module is loaded when one of its commands is called."""
