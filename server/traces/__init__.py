"""Traces of requests by OpenTelemetry; its SDK is imported only if the settings ask for traces."""
