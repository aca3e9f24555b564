"""The operator's memory of the cluster: the newest known version of each watched object, and indexes over them.

Holds no connection and decides nothing. The watches, the operator's own writes and the repair feed it; `observe` reads
it. May import: observed."""
