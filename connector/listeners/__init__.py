"""The two HTTP applications of a node, outward and internal, and the process that serves them over TLS.

They share one node and no route: an internal path does not exist on the outward listener.
"""
