"""Methods compared side by side: denoisers, super-resolution, classifiers; each with numbers, a page and a figure."""
