"""One run on several processes: torchrun, DDP or FSDP2, and states independent of their number.

Every process reads its rows of the same global batch (`dmtl.data.loading.loader`) and divides its loss by the
number of images of the whole step. Gradients of a wrapped module are therefore *sums* over the processes, and
equal those of one process with the whole batch, to rounding.

Processes have labels of different tasks, and the parameters of a task get a gradient only if it is labelled.
Both DDP and FSDP2 need every process to reduce the same gradients. So every trainable parameter takes part
everywhere, without adding a zero anywhere. A parameter that has no gradient in any process keeps none, as in
one process, and the optimiser skips it (no decay, no moments).

    world = connect(config.device)
    run = wrap(objective, config.execution, world)      # objective(...) -> (loss, ...) or loss
    for step ...:
        expect(run, (labelled tasks of the step, ...))
        for i, part in enumerate(parts):
            with last_micro_batch(run, i == len(parts) - 1):
                run(part)[0].backward()
        drop_absent(run)
        optimizer.step()
"""

from __future__ import annotations

import copy
import inspect
import warnings
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from dmtl.errors import ConfigError
from dmtl.nn.precision import sources
from dmtl.runtime.distributed import World
from dmtl.train.config import ExecutionConfig

Model = TypeVar("Model", bound=nn.Module)


def share_buffers(model: nn.Module, world: World) -> None:
    """Copy the first process's buffers (statistics of batch norms) to all."""
    if world.size > 1:
        for buffer in model.buffers():
            dist.broadcast(buffer, src=0)


def wrap(module: nn.Module, execution: ExecutionConfig, world: World) -> nn.Module:
    """Wrap a module so that forward and backward span all processes; return it unchanged for one.

    Its forward must return the loss, or a tuple that starts with it: this process's share of a sum over all.
    After `backward` gradients are sums over the processes; do not scale the loss by their number. Every
    process runs at least one forward and backward in a step, even without a label (any scalar is a loss
    then). With `last_micro_batch` their numbers may differ, except with synchronised batch norms.

    Freeze parameters before this call. FSDP2 shards the parameters of `module` in place: create optimisers
    afterwards (over the same module), and pass its state dicts through `full_tensors` and `sharded`. Its
    weights lose the channels-last layout.

    Raises:
        ConfigError: synchronised batch norms on a CPU; a torch too old for FSDP2 with partial labels;
            parameters that it cannot shard.
    """
    if world.size == 1:
        return module
    if execution.sync_bn:
        if world.device.type != "cuda":
            raise ConfigError(f"execution.sync_bn must be false on {world.device.type}: it needs GPUs")
        module = nn.SyncBatchNorm.convert_sync_batchnorm(module)  # in place, with the same parameters
    share = _Share(module, world.size)
    if execution.parallel == "fsdp":
        return _sharded_module(share, world.device)
    # 1x1 convolutions have two layouts at once, and their gradients the other one
    warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
    known = inspect.signature(DistributedDataParallel).parameters  # torch 2.13 renamed it
    buffers = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
    options: dict[str, Any] = {buffers: False}
    return DistributedDataParallel(share, gradient_as_bucket_view=True, **options)


def expect(run: nn.Module, key: Hashable) -> None:
    """Prepare a step; call it before the step's forwards. `key` decides which parameters get a gradient and
    is the same in all processes: the tasks labelled anywhere in the step, and whether the chain runs."""
    if (share := _share_of(run)) is not None:
        share.expect(key)


@contextmanager
def last_micro_batch(run: nn.Module, last: bool) -> Iterator[None]:
    """Run one micro-batch in this context: gradients stay local, and are reduced with the last one."""
    if isinstance(run, DistributedDataParallel) and not last:
        with run.no_sync():
            yield
        return
    if hasattr(run, "set_requires_gradient_sync"):
        fsdp: Any = run
        fsdp.set_is_last_backward(last)
        fsdp.set_requires_gradient_sync(last)
        fsdp.set_reshard_after_backward(last)
    yield


def drop_absent(run: nn.Module, complete: bool = True) -> None:
    """Set gradients to None if no process had one; call it after a step's backwards.

    The processes ask each other only when the step's key (`expect`) is new.

    Args:
        complete: False if this process lacks labels that the key promises (skipped corrupt samples); nothing
            learned from such a step is remembered.
    """
    if (share := _share_of(run)) is not None:
        share.drop_absent(complete)


class _Share(nn.Module):
    """The module that DDP or FSDP2 wraps, whose gradients are summed over the processes."""

    def __init__(self, module: nn.Module, size: int):
        super().__init__()
        self.module, self.size = module, size
        self.touched: Sequence[Tensor] | None = None  # FSDP2: None, it reduces zeros for missing gradients
        self._absent: dict[Hashable, list[int]] = {}
        self._key: Hashable = None
        self._reached: set[int] | None = None

    def trainable(self) -> list[nn.Parameter]:
        return [p for p in self.module.parameters() if p.requires_grad]

    def expect(self, key: Hashable) -> None:
        self._key = key
        self._reached = None if key in self._absent else set()

    def forward(self, *args: Any, **options: Any) -> Any:
        out = self.module(*args, **options)
        loss, rest = (out[0], out[1:]) if isinstance(out, tuple) else (out, None)
        if not torch.is_grad_enabled():
            return out
        if self._reached is not None:
            found = _leaves(loss)
            self._reached.update(i for i, p in enumerate(self.trainable()) if id(p) in found)
        if self.touched is None:
            self.touched = self.trainable()
        loss = _Everything.apply(loss, self.size, *self.touched)
        return loss if rest is None else (loss, *rest)

    def drop_absent(self, complete: bool) -> None:
        parameters = self.trainable()
        if self._reached is None:
            absent = self._absent[self._key]
        else:
            votes = torch.zeros(len(parameters) + 1, dtype=torch.uint8)
            votes[list(self._reached)] = 1
            votes[-1] = not complete
            dist.all_reduce(votes, dist.ReduceOp.MAX)
            absent = [i for i, present in enumerate(votes[:-1].tolist()) if not present]
            if not votes[-1]:
                self._absent[self._key] = absent
        for i in absent:
            parameters[i].grad = None


class _Everything(torch.autograd.Function):
    """The identity of a loss that depends on every parameter, with an undefined gradient: autograd adds
    nothing to anything, and DDP, notified that the gradient is ready, treats a missing one as zeros."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, size: int, *parameters: Tensor) -> Tensor:
        ctx.size, ctx.count = size, len(parameters)
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return (grad * ctx.size, None, *[None] * ctx.count)  # DDP and FSDP2 divide by the number of processes


def _leaves(loss: Tensor) -> set[int]:
    """Return the ids of the tensors that `loss.backward()` would give a gradient."""
    nodes = [(loss.grad_fn, 0)]
    seen, leaves = set(nodes), set()
    while nodes:
        node, output = nodes.pop()
        if node is None:
            continue
        if hasattr(node, "variable"):
            leaves.add(id(node.variable))
        for following in sources(node, output):
            if following not in seen:
                seen.add(following)
                nodes.append(following)
    return leaves


def _share_of(run: nn.Module) -> _Share | None:
    inner = run.module if isinstance(run, DistributedDataParallel) else run
    return inner if isinstance(inner, _Share) else None


def _sharded_module(share: _Share, device: torch.device) -> nn.Module:
    """Apply FSDP2 to everything at once: modules here read each other's parameters outside their forward."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, fully_shard

    if not hasattr(FSDPModule, "set_reduce_scatter_unused_params"):
        raise ConfigError(
            f'execution.parallel = "fsdp" needs torch 2.13 or newer, this is {torch.__version__}'
        )
    for name, parameter in share.module.named_parameters():
        if parameter.dim() == 0:
            raise ConfigError(
                f'execution.parallel must be "ddp": FSDP2 cannot shard the scalar parameter {name}'
            )
        parameter.data = parameter.data.contiguous()
    mesh = init_device_mesh(device.type, (share.size,))
    fully_shard(share, mesh=mesh, reshard_after_forward=False)
    fsdp: Any = share  # FSDP2 has changed its class
    fsdp.set_reduce_scatter_unused_params(True)
    return share


def clip_grad_norm(parameters: Iterable[nn.Parameter], limit: float) -> Tensor:
    """Clip with `torch.nn.utils.clip_grad_norm_`; return the norm over all shards as a plain scalar."""
    return _full(nn.utils.clip_grad_norm_(list(parameters), limit))


def full_tensors(state: Any, keep: bool = True) -> Any:
    """Return a state dict (nested dicts, lists, tuples) with sharded tensors gathered on the CPU, all else
    unchanged. With sharded tensors every process must call it, at the same place.

    Args:
        keep: False drops each gathered tensor at once and returns None, for processes that only take part.
    """
    if isinstance(state, Mapping):
        made = {key: full_tensors(value, keep) for key, value in state.items()}
        return made if keep else None
    if isinstance(state, (list, tuple)):
        parts = [full_tensors(value, keep) for value in state]
        return type(state)(parts) if keep else None
    value = _full(state) if isinstance(state, Tensor) else state
    return (value.cpu() if value is not state else value) if keep else None


def sharded(state: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Shard whole tensors, the same in every process, like those of `like` (the state dict to load into): the
    reverse of `full_tensors` for a model."""
    return {
        name: _as(value, like[name]) if hasattr(like.get(name), "full_tensor") else value
        for name, value in state.items()
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Load whole tensors with `optimizer.load_state_dict`, each laid out like its parameter: a fused
    optimiser reads the memory of both in order, whatever the strides."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    moments = {
        index: {
            name: _as(value, parameters[index])
            if getattr(value, "shape", None) == parameters[index].shape
            else value
            for name, value in values.items()
        }
        for index, values in state["state"].items()
    }
    optimizer.load_state_dict({**state, "state": moments})


def full_copy(model: Model) -> Model:
    """Copy the model with whole parameters, to evaluate or save; every process must call it."""
    whole = {
        id(p): nn.Parameter(_full(p.detach()).clone(), requires_grad=p.requires_grad)
        for p in model.parameters()
    }
    return copy.deepcopy(model, whole)


def _full(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def _as(value: Tensor, like: Tensor) -> Tensor:
    """Shard and lay out `value` like `like`; nothing is sent, since every process has all of it."""
    if not hasattr(like, "full_tensor"):
        return torch.empty_like(like, requires_grad=False).copy_(value)
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(like, DTensor)
    value = value.to(like.device, like.dtype).contiguous()
    return distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None)
