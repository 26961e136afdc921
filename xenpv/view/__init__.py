"""What looks at a platform from outside: its rings decoded, dumps, recordings and their pages.

Nothing here takes part in the model: looking changes no memory, no trace and no digest.
"""
