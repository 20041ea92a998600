"""Fields of config.json that do not change the forward pass: training, generation, bookkeeping of libraries."""

HARMLESS = {
    # Names, versions, types
    "_name_or_path", "_commit_hash", "_attn_implementation", "_attn_implementation_autoset",
    "_attn_implementation_internal", "_experts_implementation", "architectures", "auto_map", "model_type",
    "torch_dtype", "dtype", "transformers_version", "tokenizer_class", "custom_pipelines", "library_name", "license",
    "language",
    "unsloth_fixed", "unsloth_version", "original_rope", "name_or_path", "transformers.js_config",
    # How it is run
    "use_cache", "use_grouped_mm", "use_return_dict", "return_dict", "torchscript", "use_bfloat16", "use_flash_attn",
    "output_attentions", "output_hidden_states", "output_router_logits", "output_scores", "return_dict_in_generate",
    "use_flash_attention", "gradient_checkpointing", "chunk_size_feed_forward", "tf_legacy_loss", "tp_plan",
    "bias_dropout_fusion", "fp32_residual_connection", "attention_softmax_in_fp32", "apply_query_key_layer_scaling",
    "pretraining_tp", "keys_to_ignore_at_inference",
    # Training
    "initializer_range", "initializer_factor", "attention_dropout", "hidden_dropout", "dropout", "classifier_dropout",
    "embd_pdrop", "resid_pdrop", "attn_pdrop", "embedding_dropout", "hidden_dropout_prob", "router_aux_loss_coef",
    "router_jitter_noise", "router_z_loss_coef", "mtp_loss_scaling_factor", "aux_loss_alpha", "seq_aux",
    "attention_probs_dropout_prob",
    # Tasks other than text
    "id2label", "label2id", "num_labels", "task_specific_params", "finetuning_task", "problem_type",
    "prefix_projection",
    # Tokens and generation
    "bos_token_id", "pad_token_id", "sep_token_id", "decoder_start_token_id", "prefix", "max_length", "min_length",
    "do_sample", "early_stopping", "num_beams", "num_beam_groups", "diversity_penalty", "temperature", "top_k", "top_p",
    "typical_p", "repetition_penalty", "length_penalty", "no_repeat_ngram_size", "encoder_no_repeat_ngram_size",
    "bad_words_ids", "num_return_sequences", "forced_bos_token_id", "forced_eos_token_id", "remove_invalid_values",
    "exponential_decay_length_penalty", "suppress_tokens", "begin_suppress_tokens", "max_new_tokens",
    # Said twice, or of use with others only
    "max_window_layers", "head_dim", "kv_channels", "num_layers", "num_hidden_layers", "seq_length",
    "tie_word_embeddings", "rms_norm_eps", "layer_norm_eps", "cross_attention_hidden_size", "is_decoder",
    "tie_encoder_decoder",
}  # fmt: skip

# Fields that change the result unless they are absent, null or one of these.
UNLESS = {
    "quantization_bit": [0],
    "pruned_heads": [{}, []],
    "is_encoder_decoder": [False],
    "add_cross_attention": [False],
    "is_causal": [True],
    "use_bidirectional_attention": [False],
}

# What the configs of models that see pictures have around the language model.
PICTURES = {
    "vision_config", "image_token_id", "video_token_id", "image_start_token_id", "image_end_token_id",
    "video_start_token_id", "video_end_token_id", "image_token_index", "video_token_index", "vision_feature_layer",
    "projector_hidden_act", "multimodal_projector_bias", "spatial_merge_size", "vision_start_token_id",
    "vision_end_token_id", "vision_token_id", "vision_feature_select_strategy", "image_seq_length",
}  # fmt: skip

# Fields that say which tensors there are, and in which shapes.
SIZES = [
    "num_hidden_layers", "num_layers", "hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim",
    "intermediate_size", "vocab_size", "padded_vocab_size", "attention_bias", "tie_word_embeddings", "n_routed_experts",
    "num_experts", "num_local_experts", "moe_intermediate_size", "n_shared_experts", "num_shared_experts",
    "first_k_dense_replace", "mlp_layer_types", "use_qk_norm", "num_nextn_predict_layers", "inner_hidden_size",
    "kv_channels", "multi_query_group_num", "ffn_hidden_size", "add_qkv_bias",
    "q_lora_rank", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim",
]  # fmt: skip
