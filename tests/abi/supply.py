"""Checks of what the library takes from its surroundings."""
CHECKS_OF_A_FLAVOUR = ()
