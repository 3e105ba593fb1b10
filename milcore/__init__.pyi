from milcore.api import encode as encode
from milcore.api import evaluate as evaluate
from milcore.api import import_cohort as import_cohort
from milcore.api import ingest as ingest
from milcore.api import predict as predict
from milcore.api import train as train
from milcore.api import tune as tune
from milcore.config import AnnotationConfig as AnnotationConfig
from milcore.config import EncodeConfig as EncodeConfig
from milcore.config import ImportConfig as ImportConfig
from milcore.config import IngestConfig as IngestConfig
from milcore.config import LaunchConfig as LaunchConfig
from milcore.config import SplitConfig as SplitConfig
from milcore.config import TrainConfig as TrainConfig
from milcore.config import TuneConfig as TuneConfig
from milcore.errors import MILError as MILError
from milcore.mil.bags.bags import Bags as Bags
from milcore.mil.inference import predict_bags as predict_bags
from milcore.mil.model import MILModel as MILModel
from milcore.mil.pooling.pooling import POOLINGS as POOLINGS
from milcore.store.store import PatchStore as PatchStore
from milcore.training.fit import fit as fit
from milcore.training.run_folder import Run as Run
from milcore.training.sweep import Sweep as Sweep

__version__: str
