# Lists everything in the root file system: path, mode, size or target.
find / -xdev -type f -printf '%P %m %s\n' -o -printf '%P %y%m %l\n'
