"""Times of calls on a GPU without the host's part in them.

All calls of one implementation, one per buffer set, are captured in one CUDA graph. The sets
together exceed the L2 cache, outputs too, so that a call finds its inputs in memory as in a model;
rows too few for that are in the cache for everyone. The median over replays counts; the caller asks
several times, each implementation in its turn, and takes the best: a GPU has slow moments.
"""
import math
import statistics

import torch

REPLAYS = 11
MOST_SETS = 40
SHORT_LAPS = 5  # of MOST_SETS calls in a graph: 200 calls, and the start of a graph is nothing

_stream = None


def stream():
    """The stream on which everything runs: autograd goes backward on that of its forward."""
    global _stream
    if _stream is None:
        _stream = torch.cuda.Stream()
    return _stream


def set_count(cell):
    cache = torch.cuda.get_device_properties(0).L2_cache_size
    return max(2, min(MOST_SETS, math.ceil(2 * cache / cell.tensor_bytes)))


class Graph:
    """Calls, captured. The outputs that they allocate live as long as the graph, so that no
    implementation gains by writing the same one again and again; so do the calls, which hold what
    the kernels read."""

    def __init__(self, calls):
        laps = SHORT_LAPS if len(calls) == MOST_SETS else 1
        self.calls, self.count = calls, len(calls) * laps
        with torch.cuda.stream(stream()):
            for _ in range(2):
                for call in calls:
                    call()
        torch.cuda.synchronize()
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph, stream=stream()):
            self.outputs = [call() for _ in range(laps) for call in calls]
        for _ in range(2):
            self.graph.replay()
        torch.cuda.synchronize()

    def microseconds(self):
        """A call's time: the median of REPLAYS replays."""
        times = []
        for _ in range(REPLAYS):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            self.graph.replay()
            end.record()
            torch.cuda.synchronize()
            times.append(start.elapsed_time(end) * 1e3 / self.count)
        return statistics.median(times)
