"""The base models in the volume of a PersistentVolumeClaim: how one is stored and copied, and which ones leave.

May import: the rest of base, and what base may import."""
