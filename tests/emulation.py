"CUDA graphs, streams and devices on a CPU: the rules of `torch.cuda` that a decoder has to keep, for machines without a GPU."
from collections import defaultdict
from contextlib import contextmanager
from types import SimpleNamespace

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

HERE = torch.device("cpu") # stands for the GPU of the model
ELSEWHERE = "another GPU"  # the current device at the start
TENSOR_LR = (torch.ops.aten.new_empty_strided.default, torch.ops.aten._fused_adamw_.tensor_lr, # first met in a recording
             torch.ops.aten.rsub.Scalar, torch.ops.aten._foreach_mul.Tensor, torch.ops.aten._foreach_mul_.Tensor)
WAITING = (torch.ops.aten._local_scalar_dense, torch.ops.aten.nonzero, torch.ops.aten.masked_select, torch.ops.aten.unique_dim)


def tensors(*things): return [x for x in tree_leaves(things) if isinstance(x, torch.Tensor)]
def storage(x): return x.untyped_storage()._cdata


class Machine(TorchDispatchMode):
    "Two GPUs. While a graph is recorded, nothing is computed; a replay computes on the tensors of the recording."

    def __init__(self):
        super().__init__()
        self.device, self.streams, self.recording, self.loaded = ELSEWHERE, {}, None, {*TENSOR_LR}
        self.graphs, self.pools, self.recorded_on, self.fails_at = [], defaultdict(list), [], None

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if self.recording and self.current_stream(HERE) is self.recording.stream:
            return self.recording.note(func, args, kwargs or {})
        self.loaded.add(func)
        return func(*args, **(kwargs or {}))

    def current_stream(self, device=None):
        device = device or self.device
        if device not in self.streams: self.streams[device] = Stream(self, device, True)
        return self.streams[device]

    def in_device(self, device): return Inside(self, device)
    def in_stream(self, stream): return Inside(self, stream.device, stream)

    def as_torch_cuda(self):
        "What takes the place of `torch.cuda` in a decoder."
        return SimpleNamespace(
            Stream=lambda device=None: Stream(self, device or self.device), current_stream=self.current_stream,
            stream=self.in_stream, device=self.in_device, graph_pool_handle=object,
            CUDAGraph=lambda: Graph(self), graph=lambda *args, **kwargs: Capture(self, *args, **kwargs))


class Inside:
    "A device, and perhaps a stream, that is the current one inside."
    def __init__(self, machine, device, stream=None): self.machine, self.device, self.stream = machine, device, stream

    def __enter__(self):
        machine = self.machine
        self.before = machine.device, machine.current_stream(self.device)
        machine.device = self.device
        if self.stream: machine.streams[self.device] = self.stream

    def __exit__(self, *_): self.machine.device, self.machine.streams[self.device] = self.before


class Stream:
    "The order of a device's work: `after` are the streams that it has waited for."
    def __init__(self, machine, device, default=False): self.device, self.default, self.after = device, default, []
    def wait_stream(self, other): self.after.append(other)


class Capture:
    "`torch.cuda.graph`: as in PyTorch, a failure at the end leaves its stream set."
    def __init__(self, machine, graph, pool=None, stream=None):
        self.graph, self.pool, stream = graph, pool, stream or Stream(machine, machine.device)
        self.inside = machine.in_stream(stream)

    def __enter__(self):
        self.inside.__enter__()
        self.graph.capture_begin(self.pool)

    def __exit__(self, *error):
        self.graph.capture_end()
        self.inside.__exit__(*error)


class Graph:
    "`torch.cuda.CUDAGraph`."
    def __init__(self, machine):
        self.machine, self.calls, self.own, self.changed, self.broken, self.n_replays = machine, [], {}, {}, False, 0

    def capture_begin(self, pool):
        machine = self.machine
        self.stream, self.pool = machine.current_stream(), pool or self
        if self.stream.default: raise RuntimeError("CUDA graphs must be captured on a non-default stream.")
        machine.recorded_on.append(self.stream.device)
        machine.recording = self

    def capture_end(self):
        "Undo what was computed for the shapes' sake; what the graph made for itself holds nothing yet."
        self.machine.recording = None
        for x, before in self.changed.values(): x.untyped_storage().copy_(before)
        self.forget()
        if self.broken: raise RuntimeError("CUDA error: operation failed due to a previous error during capture")
        self.machine.graphs.append(self)
        self.machine.pools[id(self.pool)].append(self)

    def note(self, func, args, kwargs):
        "Note a call instead of making it; refuse what a GPU cannot record."
        boolean_index = func.overloadpacket in (torch.ops.aten.index, torch.ops.aten.index_put_) and any(
            x.dtype == torch.bool for x in tensors(args[1]))
        if (func.overloadpacket in WAITING or boolean_index or func not in self.machine.loaded
                or len(self.calls) == self.machine.fails_at):
            self.broken = True
            raise RuntimeError(f"CUDA error: operation not permitted when stream is capturing ({func})")
        given = {storage(x) for x in tensors(args, kwargs)}
        for place, x in zip(func._schema.arguments, args):
            if not (place.alias_info and place.alias_info.is_write): continue
            for y in tensors(x):
                if storage(y) not in {**self.own, **self.changed}: self.changed[storage(y)] = y, y.untyped_storage().clone()
        out = func(*args, **kwargs)
        made = [x for x in tensors(out) if storage(x) not in given]
        self.own |= {storage(x): x for x in made}
        self.calls.append((func, args, kwargs, out))
        return out

    def forget(self):
        "What a graph computes for itself lies in memory that other graphs of the pool use too."
        self.holds = False
        for x in self.own.values(): x.fill_(torch.nan if x.is_floating_point() else 2**30 if x.dtype != torch.bool else True)

    def replay(self):
        for graph in self.machine.pools[id(self.pool)]:
            if graph.holds: graph.forget()
        with torch._C._AutoDispatchBelowAutograd(): # gradients are among the calls
            for func, args, kwargs, out in self.calls:
                for old, new in zip(tensors(out), tensors(func(*args, **kwargs))):
                    if storage(old) != storage(new): old.copy_(new)
        self.n_replays, self.holds = self.n_replays + 1, True


@contextmanager
def emulated_cuda(monkeypatch):
    "Decoders and trainers that are made inside take the CPU for a GPU; yields the machine."
    import imgtx_nb.cached as cached
    import imgtx_nb.training as training
    machine = Machine()
    with monkeypatch.context() as patch, machine:
        for name, value in vars(machine.as_torch_cuda()).items(): patch.setattr(torch.cuda, name, value)
        patch.setattr(cached, "_on_cuda", lambda x: True)
        patch.setattr(training, "_may_record", lambda *_: True)
        yield machine
