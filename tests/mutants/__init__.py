"""Mutation testing: breaks one place of a module at a time and sees whether its tests notice.

`make mutants` runs it; `modules.toml` says which tests answer for which module. The mutants are
made by cosmic-ray, which gives each one as the text of a whole file. So a mutant is a file in a
copy of the repository, and real ranks run it too; tools that weave all mutants into one module and
choose by a variable (mutmut 3) fork after tests have run, and a forked TensorFlow whose threads are
gone waits for ever.
"""
