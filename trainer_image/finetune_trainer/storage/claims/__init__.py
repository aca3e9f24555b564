"""Volumes of PersistentVolumeClaims: paths that cannot leave a volume, files, writes and errors."""
