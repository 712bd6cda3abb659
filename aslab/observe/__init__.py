"""Figures for the tools that services are watched with. Each module needs an extra of its own.

    prometheus  a collector for prometheus_client, and a server for it
    otel        instruments of OpenTelemetry
    _serving    that server
    _http       what it is asked, and its answer
    _figures    the figures of both, and what they are called

Both read `Allocator.stats` when they are asked, in whatever thread asks: nothing is added to an allocation, and an
answer comes even while the event loop is blocked.
"""
