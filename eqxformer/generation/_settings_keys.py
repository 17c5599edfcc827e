"""The keys of a `generation_config.json`: those read, those without effect, those refused."""

from collections.abc import Mapping
from typing import Any

# What is turned into a value of ours.
READ = frozenset(
    """
    do_sample temperature top_k top_p min_p top_h typical_p epsilon_cutoff eta_cutoff
    repetition_penalty no_repeat_ngram_size bad_words_ids sequence_bias suppress_tokens
    begin_suppress_tokens forced_bos_token_id forced_eos_token_id forced_decoder_ids min_length
    min_new_tokens max_length max_new_tokens exponential_decay_length_penalty renormalize_logits
    eos_token_id pad_token_id bos_token_id decoder_start_token_id stop_strings num_beams
    num_beam_groups length_penalty diversity_penalty early_stopping num_return_sequences
    force_bos_token_to_be_generated
    """.split()  # noqa: SIM905
)

# How fast texts come and what comes with them, not which. The drafts of speculation change no
# distribution. Whisper's tables name tokens for those who write its `start`.
INERT = frozenset(
    """
    transformers_version _from_model_config _commit_hash _name_or_path _original_object_hash
    use_cache cache_implementation cache_config max_cache_len return_legacy_cache low_memory
    prefill_chunk_size compile_config disable_compile continuous_batching_config
    output_attentions output_hidden_states output_scores output_logits return_dict_in_generate
    is_assistant num_assistant_tokens num_assistant_tokens_schedule assistant_confidence_threshold
    assistant_early_exit assistant_lookbehind target_lookbehind assistant_ensemble_weight
    prompt_lookup_num_tokens max_matching_ngram_size speculation_type use_mtp use_model_defaults
    trust_remote_code transformers.js_config alignment_heads lang_to_id task_to_id is_multilingual
    no_timestamps_token_id prev_sot_token_id max_initial_timestamp_index median_filter_width
    """.split()  # noqa: SIM905
)

# What would change the texts in ways that there is nothing for here, and what does not.
NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "guidance_scale": (1,),
    "encoder_repetition_penalty": (1,),
    "encoder_no_repeat_ngram_size": (0,),
    "penalty_alpha": (0,),
    "dola_layers": (),
    "watermarking_config": (),
    "constraints": (),
    "force_words_ids": (),
    "max_time": (),
    "token_healing": (False,),
    "remove_invalid_values": (False,),
    "generation_kwargs": ({},),
    "return_timestamps": (False,),
    "language": (),
    "task": (),
}
