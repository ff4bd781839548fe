"""The CUDA engine on a GPU: is it right, how fast is it, and against cuDNN?

    python -m benchmarks.gpu                          everything, within eight minutes
    python -m benchmarks.gpu --only speed --cell lstm
    python -m benchmarks.gpu --emulate                tiny, on a machine without a GPU

Sections, in this order; each is a list of items:

    environment  versions, the device, which engine runs and why
    launch       what it costs to start a kernel, a product, both; to compile one, and to find it
    compile      all kernels that the other sections need, on all processors of the host at once
    correctness  every cell, precision and layout against the NumPy engine in float64: forward,
                 backward, states; finite differences; optimisers; the same bits twice
    speed        forward and backward against torch.nn (cuDNN), same weights, same precision
    memory       what is held between forward and backward, ours and torch's
    training     a language model on the GPU and on the CPU: the same losses, tokens a second
    peers        a loop written in torch, compiled or not; FlashRNN; a new cell in ours
    sanitizer    NVIDIA's compute-sanitizer over a few of the correctness items

A failure stays where it is: a section runs in a process of its own, an item that fails is
recorded with the end of its traceback, one that crashes the process or does not answer is killed,
and a new process goes on with the next. After every item ``gpu.json`` and ``gpu.md`` are written
whole, so a run that is cut short leaves what it had.

Needs nothing but NumPy, Numba, CuPy and the checkout; torch (with cuDNN) and FlashRNN where they
are installed, and says so where they are not.
"""
