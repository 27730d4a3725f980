"""Training beyond this machine: jobs, several workers, retraining and versions.

Lesson 08 uses it.

- `source`: what a job is given: its source folder, its data, its hyperparameters.
- `entry`: the job's entry script: SageMaker's contract, put to `train_lora`.
- `entry_orders`: its part that reads hyperparameters, folders and workers.
- `entry_data`: its part that reads the channels: rows and base model.
- `entry_checkpoints`: its part that saves checkpoints and goes on from one.
- `picture`: a job's parts and what flows between them, drawn from its description.
- `workers`: several workers on this machine, started by torchrun: DDP and FSDP.
- `several`: what each of them does, and where its time goes.
- `wrapping`, `shares`: the model as DDP and FSDP hold it; which rows are whose.
- `shapes`: how many numbers published models have, and where.
- `arithmetic`: memory, time and traffic of a training run, on paper.
- `money`: which machine holds it, how many of them, and what they cost.
- `published`: figures of papers and model cards, beside what the formulas give.
- `with_trl`: the training of `train_lora` with TRL's SFTTrainer, to take home.
- `trl_compared`: what TRL does unless it is told otherwise, measured against ours.
- `preference`: votes to pairs of a better and a worse answer; simulated readers.
- `dpo`: an adapter learns from such pairs, with TRL's DPOTrainer.
- `preference_measured`: a model before and after it: right answers, margins, lengths.
- `sweep`: what came of a tuning job: a table of its jobs, and their curves.
- `retraining`: which rows the next version is trained on, and which are left out.
- `decision`: whether a version takes the place of the live one, and why.
- `promotion`: a decided version goes into service, or does not; and the way back.
- `lineage`: which data made which adapter, archive, version, and where it serves.
- `pipeline_plan`: what a retraining pipeline is given: its plan, and what it reads.
- `pipeline`: train, evaluate, register or refuse, as a SageMaker Pipeline.
- `pipeline_run`: runs it here by the SDK's local executor; registers what it made.
- `pipeline_on_aws`: runs it there, where the service goes through its steps.
- `evaluate`: what its second job runs: both versions answer, and a rule decides.
"""
