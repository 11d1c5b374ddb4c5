"""The probes that ship with the program, each in one file: settings, spec, what is fitted and its protocol in words."""
