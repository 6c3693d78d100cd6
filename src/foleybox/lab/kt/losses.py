"""KT's losses: hinge; 2C and C-SupCon, with and without labels; SupCon for the encoder. Pure functions of tensors.

Letters: N batch, E embedding width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

# --- adversarial --------------------------------------------------------------------------------------------------


def hinge_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    """Return mean relu(1 - D(x)) + mean relu(1 + D(G(z))) of logits [N] (KT report, equation 1, as printed)."""
    return F.relu(1 - real).mean() + F.relu(1 + fake).mean()


def hinge_generator(fake: Tensor) -> Tensor:
    """Return -mean D(G(z)) of logits [N] (KT report, equation 1)."""
    return -fake.mean()


# --- contrastive --------------------------------------------------------------------------------------------------


def conditional_contrastive(
    data: Tensor,
    proxy: Tensor,
    source: Tensor | None = None,
    labels: Tensor | None = None,
    *,
    tau_data: float = 0.1,
    tau_class: float = 1.0,
) -> Tensor:
    """Return the mean 2C or C-SupCon loss, with or without labels, depending on the arguments.

    `data` [N, E] are the embeddings d_i = h(D1(x_i)), `proxy` [N, E] the label embeddings e(c_i), `source` [N, E] the
    frozen encoder's embeddings of the corresponding real clips; all of unit length. `labels` int64 [N].

    With  A_i = exp(d_i.e(c_i) / tau_class),  B_i = exp(d_i.s_i / tau_class),
          R_i = sum over k != i of exp(d_i.d_k / tau_data),  Q_i = the part of R_i whose label is that of i:

    | source | labels | loss of item i                     | name                             |
    |--------|--------|------------------------------------|----------------------------------|
    | None   | None   | -ln (A / (A + R))                  | 2C without label, KT equation 3  |
    | None   | given  | -ln ((A + Q) / (A + R))            | 2C, ContraGAN                    |
    | given  | None   | -ln ((A + B) / (A + B + R))        | C-SupCon without label, KT eq. 5 |
    | given  | given  | -ln ((A + B + Q) / (A + B + R))    | C-SupCon                         |

    KT write tau_d for `tau_data` and tau_c for `tau_class`. Computed with logsumexp in float32 at least, since
    63 exp(1 / 0.1) is above the largest half-precision number. Memory is [N, N]: no [N, N, E] tensor.
    """
    precision = torch.promote_types(data.dtype, torch.float32)
    with torch.autocast(data.device.type, enabled=False):
        data, proxy = data.to(precision), proxy.to(precision)
        targets = [proxy] if source is None else [proxy, source.to(precision)]
        anchors = torch.stack([(data * target).sum(1) for target in targets], 1) / tau_class  # [N, 1 or 2]
        itself = torch.eye(len(data), dtype=torch.bool, device=data.device)
        others = (data @ data.T / tau_data).masked_fill(itself, -torch.inf)  # [N, N]
        positives = anchors
        if labels is not None:
            positives = torch.cat([anchors, others.masked_fill(labels[:, None] != labels, -torch.inf)], 1)
        return (torch.cat([anchors, others], 1).logsumexp(1) - positives.logsumexp(1)).mean()


# --- supervised contrastive ---------------------------------------------------------------------------------------


def supervised_contrastive(embedding: Tensor, labels: Tensor, tau: float = 0.1) -> Tensor:
    """Return SupCon's L_out of unit embeddings [N, E] with `labels` int64 [N] (Khosla et al. 2020, equation 2).

    With P(i) the others of i's label, the loss of item i is
        -1/|P(i)| sum over p in P(i) of ln( exp(z_i.z_p / tau) / sum over a != i of exp(z_i.z_a / tau) ),
    and 0 where P(i) is empty; the mean over all N is returned. Two views of a clip are two rows of the same label. With
    the number of the clip as its label this is SimCLR's loss (Chen et al. 2020, equation 1).
    """
    precision = torch.promote_types(embedding.dtype, torch.float32)
    with torch.autocast(embedding.device.type, enabled=False):
        z = embedding.to(precision)
        itself = torch.eye(len(z), dtype=torch.bool, device=z.device)
        similarity = (z @ z.T / tau).masked_fill(itself, -torch.inf)  # [N, N]
        log_prob = similarity - similarity.logsumexp(1, keepdim=True)
        positive = (labels[:, None] == labels) & ~itself
        total = torch.where(positive, log_prob, 0.0).sum(1)
        return -(total / positive.sum(1).clamp(min=1)).mean()
