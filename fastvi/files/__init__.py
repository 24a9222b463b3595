"""Files that are whole or not there, and files that are not trusted."""
