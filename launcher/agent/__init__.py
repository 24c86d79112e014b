"""The small process between the launcher and one rank, here or on another host.

It needs the standard library only, starts in milliseconds, and outlives the launcher just long
enough to end whatever the rank has started.
"""
