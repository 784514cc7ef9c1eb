"""OpenTelemetry traces of gateway and engine pods: trace contexts, spans, and the way to a collector.

Here: what a span is to Tandem's own code (`spans`, free of OpenTelemetry), whether spans are wanted (`start`), and the
SDK behind it (`otel`, imported only when they are). Not here: what is worth a span, which is for those who do the work.
"""
