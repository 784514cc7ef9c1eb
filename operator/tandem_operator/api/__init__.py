"""The InferenceService types: fields, defaults, limits and CEL rules, from which the CRD is generated.

No behaviour belongs here: what a spec means for pods is `plan`'s, how a status comes about is `status`'s.
"""
