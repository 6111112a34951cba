"""Whether this machine multiplies by weights in oneDNN's blocked layout, which a CPU reads faster than a plain matrix.

The layout itself is made where it is used: serving and training keep different weights in it.
"""

import torch
from torch import Tensor


def can_be_blocked(weight_OI: Tensor) -> bool:
    """Whether a linear map's weights can be kept in blocks here.

    In fp32 on any CPU; in bf16 where oneDNN computes it natively, which takes more than AVX2.
    """
    if weight_OI.device.type != "cpu":
        return False
    if weight_OI.dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return weight_OI.dtype == torch.float32
