"""The building blocks of a decoder, one small file each; a layer's constructor takes its weights from a `WeightSource`.

No model knows here which family it is: families differ in `ModelConfig`'s data. No paging: that is `attention`'s.
"""
