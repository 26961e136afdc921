"""Laws that checkers.check_all holds, by what they are about."""
