"""The command line `milcore`."""
