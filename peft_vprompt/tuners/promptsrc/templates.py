"""The 60 texts that PromptSRC's frozen model reads: of those that CLIP's authors published for ImageNet.

Source: muzairkhattak/PromptSRC `trainers/imagenet_templates.py`: the first 60, of which the plainest comes first.
"""

from ...core.prompt_templates import ENSEMBLES, SINGLE


TEMPLATES = (SINGLE, *(template for template in ENSEMBLES["ensemble-80"][:60] if template != SINGLE))
