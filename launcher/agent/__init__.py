"""The small process between the launcher and one rank, on this machine or on another host.

It needs the standard library only, starts in milliseconds, and outlives the launcher just long
enough to end all processes that the rank has started.
"""
