"""How seldom a test of random numbers without a seed may fail where nothing is wrong.

The suite makes fewer than two hundred such comparisons. Each is allowed RARE, so that all of them together fail less
than once in a million runs; SIGMAS is the same for a number that is normally distributed, as means of many draws are.
"""

RARE = 1e-9
SIGMAS = 6.2
