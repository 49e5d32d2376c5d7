"""Settings of a run. Every default is the recommended value.

A field marked cosmetic cannot change a number and is left out of content keys (`keyed`).
"""

from schemas.config.base import COSMETIC as COSMETIC
from schemas.config.base import Settings as Settings
from schemas.config.base import is_cosmetic as is_cosmetic
from schemas.config.base import settings_in as settings_in
from schemas.config.engines import Engine as Engine
from schemas.config.engines import ScoringSettings as ScoringSettings
from schemas.config.engines import TransformersEngine as TransformersEngine
from schemas.config.engines import VLLMEngine as VLLMEngine
from schemas.config.engines import VLLMServerEngine as VLLMServerEngine
from schemas.config.execution import Execution as Execution
from schemas.config.forms import ByKind as ByKind
from schemas.config.inputs import Model as Model
from schemas.config.inputs import Name as Name
from schemas.config.inputs import Prompt as Prompt
from schemas.config.inputs import Questions as Questions
from schemas.config.inputs import Url as Url
from schemas.config.inputs import is_local_folder as is_local_folder
from schemas.config.inputs import place_problem as place_problem
from schemas.config.inputs import template_fields as template_fields
from schemas.config.losses import JSD as JSD
from schemas.config.losses import AlphaDivergence as AlphaDivergence
from schemas.config.losses import ForwardKL as ForwardKL
from schemas.config.losses import Loss as Loss
from schemas.config.losses import ReverseKL as ReverseKL
from schemas.config.losses import SkewKL as SkewKL
from schemas.config.losses import SkewReverseKL as SkewReverseKL
from schemas.config.losses import TopK as TopK
from schemas.config.losses import TotalVariation as TotalVariation
from schemas.config.losses import default_losses as default_losses
from schemas.config.losses import loss_name as loss_name
from schemas.config.run import RunConfig as RunConfig
from schemas.config.run import Sampling as Sampling
from schemas.config.scores import Grouping as Grouping
from schemas.config.scores import Ranking as Ranking
from schemas.config.scores import Scores as Scores
from schemas.config.suites import CalibrateConfig as CalibrateConfig
from schemas.config.suites import DemoConfig as DemoConfig
from schemas.config.suites import NightlyConfig as NightlyConfig
from schemas.config.teachers import CONTEXT_TEMPLATES as CONTEXT_TEMPLATES
from schemas.config.teachers import Context as Context
from schemas.config.teachers import RecordedTeacher as RecordedTeacher
from schemas.config.teachers import Teacher as Teacher
from schemas.config.trees import AdaptiveTree as AdaptiveTree
from schemas.config.trees import Branching as Branching
from schemas.config.trees import ForcedTree as ForcedTree
from schemas.config.trees import RecordedTree as RecordedTree
from schemas.config.trees import Tree as Tree
from schemas.config.trees import WindowsTree as WindowsTree
from schemas.config.verifiers import ChoiceVerifier as ChoiceVerifier
from schemas.config.verifiers import ExactVerifier as ExactVerifier
from schemas.config.verifiers import MathVerifier as MathVerifier
from schemas.config.verifiers import NumericVerifier as NumericVerifier
from schemas.config.verifiers import Verifier as Verifier
