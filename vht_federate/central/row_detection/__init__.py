"""Does a publication hold rows of patients? Asked of every file of it."""
