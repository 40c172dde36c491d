"""Adapters: what joins the core to one library of sockets each."""
