"""The training data: short dialogues made by a program from a seed, one file for each family of questions."""
