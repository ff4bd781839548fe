"""The CUDA engine on a GPU: is it right, how fast is it, and against cuDNN?

    python -m benchmarks.gpu --prepare FOLDER         without a GPU: compile what one will need
    python -m benchmarks.gpu --prepared FOLDER        with one: everything, within eight minutes
    python -m benchmarks.gpu --only speed --cell lstm
    python -m benchmarks.gpu --emulate                tiny, on a machine without a GPU

Sections, in this order; each is a list of items:

    first        with CuPy and NumPy alone: does a gate kernel run, a persistent one of a block, of
                 2, 32 and 128; microseconds a step, and of the step's parts (``first.py``)
    environment  versions, the device, which engine runs and why
    speed        forward and backward against torch.nn (cuDNN), same weights, same precision
    correctness  cells with persistent kernels, each precision and layout, against the NumPy engine
                 in float64: forward, backward, states; optimisers; the same bits twice
    profile      Nsight Compute on a persistent kernel
    sanitizer    NVIDIA's compute-sanitizer over a few of the correctness items
    launch       what it costs to start a kernel, a product, both
    training     a language model on the GPU and on the CPU: the same losses, tokens a second
    peers        a loop written in torch, compiled or not; FlashRNN; a new cell in ours
    memory       what is held between forward and backward, ours and torch's
    compile      whether kernels compile on this machine, and how long that takes
    others       the other cells, float64, finite differences

Kernels are debug builds: a block that waits some two seconds for others says at which step, and how
many had arrived, and goes on; the item is recorded as failed. Where blocks wait for ever as a rule,
the later sections go step by step.

A failure stays where it is: a section runs in a process of its own, an item that fails is
recorded with the end of its traceback, one that crashes the process or does not answer is killed,
and a new process goes on with the next. Every beginning and every record is a line of
``gpu.jsonl``, on the disk before anything else happens; after every item ``gpu.json`` and
``gpu.md`` are written whole. So a run that is cut short leaves what it had.

Needs nothing but NumPy, Numba, CuPy and the checkout; torch (with cuDNN), FlashRNN, ncu and
compute-sanitizer where they are installed, and says so where they are not. No compiler is needed
for what was prepared.
"""
