"""The command line: runs, run folders, images, pictures and reports. Nothing imports it."""
