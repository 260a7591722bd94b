"""Train one run on several processes: torchrun, DDP or FSDP2, and states that do not depend on their number.

Every process reads its rows of the same global batch (`dmtl.data.loading.loader`) and divides its loss by the
number of images of the whole step. So gradients of a wrapped module are *sums* over the processes. Up to
rounding, they equal those of one process with the whole batch.

Processes have labels of different tasks, and the parameters of a task only get a gradient if it is labelled.
But DDP and FSDP2 need all processes to reduce the same gradients. Therefore every trainable parameter takes
part in every process, without adding zeros. If a parameter has no gradient in any process, it keeps none, as
in one process, and the optimiser skips it (no decay, no moments).

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
    """Copy the buffers of the first process (statistics of batch norms) to all processes."""
    if world.size > 1:
        for buffer in model.buffers():
            dist.broadcast(buffer, src=0)


def wrap(module: nn.Module, execution: ExecutionConfig, world: World) -> nn.Module:
    """Wrap a module so that forward and backward span all processes; return it unchanged for one.

    The forward of the module must return the loss, or a tuple that starts with it: this process's share of
    the sum over all processes. After `backward`, gradients are sums over the processes, so do not scale the
    loss by their number. Every process must run at least one forward and backward in a step, even without
    labels (then any scalar can be the loss). With `last_micro_batch`, processes may run different numbers of
    them, except with synchronised batch norms.

    Freeze parameters before this call. FSDP2 shards the parameters of `module` in place: create optimisers
    afterwards, over the same module, and pass its state dicts through `full_tensors` and `sharded`. Its
    weights lose the channels-last layout.

    Raises:
        ConfigError: batch norms shall be synchronised on CPUs, torch is too old for FSDP2 with partial
            labels, or FSDP2 cannot shard a parameter.
    """
    if world.size == 1:
        return module
    if execution.sync_bn:
        if world.device.type != "cuda":
            raise ConfigError(f"execution.sync_bn must be false on a {world.device.type}, it needs GPUs")
        module = nn.SyncBatchNorm.convert_sync_batchnorm(module)  # in place, with the same parameters
    share = _Share(module, world.size)
    if execution.parallel == "fsdp":
        return _sharded_module(share, world.device)
    # Weights of 1x1 convolutions have two layouts at once, and their gradients may use the other one.
    warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
    known = inspect.signature(DistributedDataParallel).parameters  # torch 2.13 renamed the option
    buffers = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
    options: dict[str, Any] = {buffers: False}
    return DistributedDataParallel(share, gradient_as_bucket_view=True, **options)


def expect(run: nn.Module, key: Hashable) -> None:
    """Prepare a step; call it before the step's forwards.

    `key` is everything that decides which parameters get a gradient: the tasks that are labelled in any
    process, and whether the chain runs. It must be the same in all processes.
    """
    if (share := _share_of(run)) is not None:
        share.expect(key)


@contextmanager
def last_micro_batch(run: nn.Module, last: bool) -> Iterator[None]:
    """In this context, run one micro-batch: gradients stay local and are reduced with the `last` one."""
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

    The processes only communicate if the key of the step (`expect`) is new; otherwise the result is known.

    Args:
        run: the wrapped module.
        complete: False if this process lacks labels that the key announced, because corrupt samples were
            skipped. The result of such a step is not remembered.
    """
    if (share := _share_of(run)) is not None:
        share.drop_absent(complete)


class _Share(nn.Module):
    """The module that DDP or FSDP2 wraps, whose gradients are summed over the processes."""

    def __init__(self, module: nn.Module, size: int):
        super().__init__()
        self.module, self.size = module, size
        self.touched: Sequence[Tensor] | None = (
            None  # None with FSDP2, which reduces zeros for missing gradients
        )
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
    """Return the loss unchanged, but make it depend on every parameter, with undefined gradients.

    So autograd adds nothing, but DDP is notified that the gradients are ready, and treats missing ones as
    zeros.
    """

    @staticmethod
    def forward(ctx: Any, loss: Tensor, size: int, *parameters: Tensor) -> Tensor:
        ctx.size, ctx.count = size, len(parameters)
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return (grad * ctx.size, None, *[None] * ctx.count)  # DDP and FSDP2 divide by the number of processes


def _leaves(loss: Tensor) -> set[int]:
    """Return the ids of the tensors that would get a gradient from `loss.backward()`."""
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
    """Apply FSDP2 to the whole module at once, because parts read each other's parameters outside of
    forward."""
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
    fsdp: Any = share  # FSDP2 has changed the class of the object
    fsdp.set_reduce_scatter_unused_params(True)
    return share


def clip_grad_norm(parameters: Iterable[nn.Parameter], limit: float) -> Tensor:
    """Clip with `torch.nn.utils.clip_grad_norm_`; return the norm over all shards as a plain scalar."""
    return _full(nn.utils.clip_grad_norm_(list(parameters), limit))


def full_tensors(state: Any, keep: bool = True) -> Any:
    """Return a state dict (nested dicts, lists, tuples) with sharded tensors gathered on the CPU.

    Everything else is unchanged. If there are sharded tensors, all processes must make this call together.

    Args:
        state: the state dict.
        keep: False: drop each gathered tensor at once and return None, for processes that do not need the
            result.
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
    """Shard whole tensors like those of `like`, the state dict to load into: the inverse of `full_tensors`.

    The tensors must be the same in all processes.
    """
    return {
        name: _as(value, like[name]) if hasattr(like.get(name), "full_tensor") else value
        for name, value in state.items()
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Load a state of whole tensors into an optimiser, with each tensor in the memory layout of its
    parameter.

    The layouts must agree, because a fused optimiser reads both in memory order and ignores strides.
    """
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
    """Copy the model with whole parameters, to evaluate or save it; all processes must call this together."""
    whole = {
        id(p): nn.Parameter(_full(p.detach()).clone(), requires_grad=p.requires_grad)
        for p in model.parameters()
    }
    return copy.deepcopy(model, whole)


def _full(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def _as(value: Tensor, like: Tensor) -> Tensor:
    """Shard and lay out `value` like `like`.

    Nothing is communicated, because every process has all of `value`.
    """
    if not hasattr(like, "full_tensor"):
        return torch.empty_like(like, requires_grad=False).copy_(value)
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(like, DTensor)
    value = value.to(like.device, like.dtype).contiguous()
    return distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None)
