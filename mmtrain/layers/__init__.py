"""Layers: attention, convolutions, experts, patches, and what of them can be cut.

A tensor's name ends in its shape; the letters, everywhere in `mmtrain`:

    B  examples of the rank's batch        H  attention heads
    L  positions of a sequence             K  channels of a head
    S  positions of the encoded input      E  experts
    T  positions of the target, or frames  N  rows sent through experts (positions that are real)
    M  positions attended to               F  hidden width of an expert or feed-forward layer
    D  width of the body                   V  vocabulary, or classes
    Y, X  rows and columns of an image; frames and bins of a spectrogram
    C  channels of an image or a convolution
    W  numbers in one patch of an input

Letters are logical dimensions, never shards.
"""
