# mmdet's runtime for models that train in minutes on a CPU.
_base_ = 'mmdet::_base_/default_runtime.py'

default_hooks = dict(
    logger=dict(interval=25),
    checkpoint=dict(max_keep_ckpts=2, save_best='auto'),
)
log_processor = dict(window_size=25)
env_cfg = dict(mp_cfg=dict(mp_start_method='fork', opencv_num_threads=1))
randomness = dict(seed=0)
