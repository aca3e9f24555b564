"""How each fault is injected.

A harm is a function of a lane and its job. The harm of a fault that all jobs share takes any lane.
"""
