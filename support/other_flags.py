"""Flags of other trainers, and what to give here instead.

Of Hugging Face's TrainingArguments and run_glue.py, accelerate's and PyTorch Lightning's scripts, mt-dnn, the
arguments of smart-pytorch's SMARTLoss, and the scripts of the CS 224N project. `answer` is asked about flags
that do not exist here.
"""

SAME = {  # our flag: names of theirs
    "--lr": "learning_rate peak_lr max_lr init_lr",
    "--head_lr": "lr_head classifier_lr head_learning_rate",
    "--layer_lr_decay": "layerwise_lr_decay llrd lr_layer_decay",
    "--epochs": "num_train_epochs num_epochs max_epochs n_epochs train_epochs",
    "--steps_per_epoch": "num_batches_per_epoch limit_train_batches",
    "--batch_size": "per_device_train_batch_size per_gpu_train_batch_size train_batch_size",
    "--gradient_accumulation_steps": "grad_accumulation_step grad_accumulation_steps accumulate_grad_batches"
    " accumulation_steps",
    "--max_length": "max_seq_length max_seq_len max_len seq_length model_max_length",
    "--max_train_samples": "limit_train_samples",
    "--max_eval_samples": "max_val_samples limit_eval_samples",
    "--warmup_steps": "num_warmup_steps",
    "--max_grad_norm": "global_grad_clipping grad_clipping gradient_clip_val clip_grad_norm grad_clip",
    "--weight_decay": "l2 wd",
    "--hidden_dropout_prob": "dropout dropout_p dropout_prob dropout_rate classifier_dropout",
    "--precision fp16": "fp16 use_amp amp fp16_full_eval fp16_opt_level fp16_backend half_precision_backend",
    "--precision bf16": "bf16 bf16_full_eval",
    "--precision": "mixed_precision dtype torch_dtype",
    "--seed": "data_seed random_seed manual_seed",
    "--deterministic": "full_determinism",
    "--compile": "torch_compile torch_compile_backend torch_compile_mode",
    "--logging_steps": "logging_strategy log_per_updates log_every_n_steps",
    "--log_level debug": "verbose debug",
    "--patience": "early_stopping_patience early_stopping",
    "--select_by": "metric_for_best_model monitor",
    "--output_dir": "run_name name save_dir out_dir filepath log_file logging_dir tensorboard_logdir",
    "--resume --output_dir FOLDER": "resume_from_checkpoint model_ckpt",
    "--model_name_or_path": "model model_name bert_model bert_model_type model_size init_checkpoint"
    " encoder_type pretrained_model config_name tokenizer_name tokenizer",
    "--pooling": "pooling_mode pooler_type",
    "--tasks": "task_names train_datasets task_def",
    "--eval_tasks": "test_datasets",
    "--task_weights": "loss_weights task_loss_weights",
    "--data_dir": "data_path dataset_dir dataset_name dataset_config_name",
    "--use_gpu": "cuda gpu use_cuda gpus",
    "--schedule": "mix_opt ratio task_sampling",
    "--gradient_surgery pcgrad --schedule joint": "pcgrad use_pcgrad",
    "--use_smart": "adv_train smart",
    "--adversary": "adv_opt",
    "--smart_weight": "adv_alpha smart_loss_weight smart_lambda lambda_smart",
    "--smart_epsilon": "epsilon adv_epsilon",
    "--smart_step_size": "step_size adv_step_size smart_eta",
    "--smart_steps": "num_steps adv_k",
    "--smart_noise_var": "noise_var adv_noise_var smart_sigma",
    "--smart_norm": "norm_fn adv_p_norm adv_norm_level",
    "--bregman_beta": "ema_gamma ema_decay",
    "--keep teacher": "ema_opt use_ema",
    "--rdrop_weight": "rdrop_alpha kl_alpha",
    "--train_file, or --sst_train, --para_train, --sts_train": "train train_data train_path train_dataset",
    "--dev_file, or --sst_dev, --para_dev, --sts_dev": "dev validation_file eval_file valid_file val_file",
    "--test_file, or --sst_test, --para_test, --sts_test": "test predict_file",
    "--text_column": "text_column_name text_column_names sentence1_key sentence2_key",
    "--label_column": "label_column_name label_column_names label_key",
    "--sst_dev_out, --para_dev_out or --sts_dev_out": "dev_out",
    "--sst_test_out, --para_test_out or --sts_test_out": "test_out",
    "--fine-tune-mode": "fine_tune_mode finetune_mode",
}
OTHERWISE = (  # what to do, and names of theirs
    ("leave it out: a run trains, scores dev and predicts the test files", "do_train"),
    ("here it is --option evaluate --checkpoint FOLDER; training scores dev, too", "do_eval do_valid"),
    (
        "here it is --option predict --checkpoint FOLDER; training predicts the test files, too",
        "do_predict do_test",
    ),
    (
        "here it is --option pretrain, which trains the heads alone",
        "freeze_layers freeze_bert freeze_encoder freeze_base_model",
    ),
    (
        "here it is --eval_steps N; without it dev is scored after each epoch",
        "eval_strategy evaluation_strategy eval_every val_check_interval evaluation_steps",
    ),
    (
        "here it is --save_steps N; without it a checkpoint is saved about every two minutes",
        "save_strategy save_per_updates save_per_updates_on checkpointing_steps",
    ),
    ("here the number of steps is --epochs times --steps_per_epoch", "max_steps max_train_steps"),
    ("here it is --warmup_steps N; without it a tenth of all steps", "warmup_ratio warmup warmup_proportion"),
    (
        "there is none: the rate rises for --warmup_steps, then falls linearly to 0",
        "lr_scheduler_type lr_scheduler_kwargs warmup_schedule scheduler scheduler_type have_lr_scheduler "
        "multi_step_lr lr_gamma",
    ),
    (
        "there is none: the optimizer is AdamW; CONTRIBUTING.md shows how to take another",
        "optim optim_args optim_target_modules optimizer adafactor adam_beta1 adam_beta2 adam_epsilon "
        "adam_eps momentum",
    ),
    (
        "there is none: evaluation takes --batch_size rows, on a GPU twice as many",
        "batch_size_eval per_device_eval_batch_size per_gpu_eval_batch_size eval_batch_size "
        "auto_find_batch_size",
    ),
    (
        "there is none: best/ holds the best model on dev, last/ the last checkpoint",
        "greater_is_better load_best_model_at_end save_total_limit save_only_model save_best "
        "save_safetensors",
    ),
    (
        "there is none: rows of a batch have similar lengths, and are padded to the longest",
        "group_by_length length_column_name train_sampling_strategy pad_to_max_length do_padding bin_on "
        "bin_size bin_grow_ratio data_sort_on",
    ),
    (
        "there is none: --gradient_accumulation_steps and --max_tokens limit the memory",
        "gradient_checkpointing gradient_checkpointing_kwargs activation_checkpointing "
        "activation_checkpointing_kwargs",
    ),
    (
        "there is none: several processes are started by torchrun",
        "local_rank world_size master_addr master_port backend n_gpu num_gpus devices multi_gpu_on "
        "nproc_per_node ddp_backend ddp_timeout ddp_find_unused_parameters ddp_bucket_cap_mb "
        "ddp_broadcast_buffers ddp_static_graph sharded_ddp",
    ),
    (
        "there is none: the best device is taken; CUDA_VISIBLE_DEVICES= hides the GPUs",
        "no_cuda use_cpu use_mps_device device accelerator",
    ),
    ("there is none: HF_HOME is the cache's folder", "cache_dir transformer_cache overwrite_cache"),
    ("there is none: set HF_HUB_OFFLINE=1", "local_files_only offline"),
    ("there is none: set HF_TOKEN", "token use_auth_token hub_token"),
    (
        "there is none: the tokenizer is that of --model_name_or_path, with its own settings",
        "do_lower_case use_fast_tokenizer use_slow_tokenizer",
    ),
    ("there is none: each task has its divergence, in tasks.py", "loss_fn loss_last_fn eval_fn"),
    (
        "there is none: the encoder's own stands in its config.json, --hidden_dropout_prob is the heads'",
        "bert_dropout_p attention_probs_dropout_prob vb_dropout dropout_w",
    ),
    (
        "there is none: the log is metrics.jsonl, and TensorBoard's files if it is installed",
        "report_to tensorboard wandb project trackio_space_id trackio_bucket_id trackio_static_space_id",
    ),
)
NONE = """
accelerator_config answer_att_hidden_size answer_att_type answer_dropout_p answer_mem_drop_p answer_mem_type
answer_merge_opt answer_num_turn answer_opt answer_rnn_type answer_sum_att_type answer_weight_norm_on
average_tokens_across_devices batch_eval_metrics dataloader_drop_last dataloader_in_order
dataloader_multiprocessing_context dataloader_num_workers dataloader_persistent_workers
dataloader_pin_memory dataloader_prefetch_factor deepspeed disable_tqdm dispatch_batches dump_state_on
embedding_opt enable_jit_checkpoint encode_mode eval_accumulation_steps eval_delay eval_do_concat_batches
eval_on_start eval_use_gather_object fsdp fsdp_config fsdp_min_num_params fsdp_transformer_layer_cls_to_wrap
glue_format_on held_out_sonnet_path hub_always_push hub_model_id hub_private_repo hub_revision hub_strategy
ignore_data_skip ignore_mismatched_sizes include_for_metrics include_inputs_for_metrics
include_num_input_tokens_seen include_tokens_per_second init_ratio jit_mode_eval label_names
label_smoothing_factor label_smoothing liger_kernel_config log_level_replica log_on_each_node
logging_first_step logging_nan_inf_filter lora_alpha lora_r masked_lm_prob max_answer_len
max_predict_samples max_predictions_per_seq mem_cum_type mkd_opt model_revision mp_parameters mtl_opt
neftune_noise_alpha num_hidden_layers num_labels num_workers parallelism_config past_index pooler_actf
prediction_loss_only push_to_hub push_to_hub_model_id push_to_hub_organization push_to_hub_token ray_scope
remove_unused_columns restore_callback_states_from_checkpoint save_on_each_node short_seq_prob
skip_memory_metrics sonnet_out sonnet_path split_batches temperature tf32 top_p torch_empty_cache_steps
torchdynamo tpu_metrics_debug tpu_num_cores trust_remote_code update_bert_opt use_cache use_ipex
use_legacy_prediction_loop use_liger_kernel use_lora xpu_backend
"""

ANSWERS = {name: f"here it is {ours}" for ours, names in SAME.items() for name in names.split()}
ANSWERS |= {name: answer for answer, names in OTHERWISE for name in names.split()}
ANSWERS |= dict.fromkeys(NONE.split(), "there is nothing like it here, leave it out")


def answer(word: str) -> str | None:
    """What to give instead of a flag such as `--learning_rate`; None if no trainer is known to have it."""
    name = word.lstrip("-\u2013\u2014").replace("-", "_").lower()
    return ANSWERS.get(name) or ANSWERS.get(name.removeprefix("no_"))
