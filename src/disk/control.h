/* control.h - what the agent says to the plugin: one request, one answer, over a socketpair(AF_UNIX, SOCK_SEQPACKET) made before the fork.
 *
 *   request, 24 bytes              answer, 256 bytes
 *    0  u32  CONTROL_MAGIC          0  u32  CONTROL_MAGIC
 *    4  u16  verb                   4  u16  0: done, 1: refused or failed, text says why, 2: what is committed is damaged (D26)
 *    6  u16  0                      6  u16  bytes of text
 *    8  u64  sequence               8  u64  sequence of the request
 *   16  u64  epoch                 16  u64  the open epoch
 *                                  24  u64  blocks of the disk
 *                                  32  u64  SEAL: blocks in the log that was sealed; else 0
 *                                  40  text, UTF-8, the rest zero
 *
 *  D15 A request or answer is accepted only if it has exactly its length, the magic, a known verb or status, zeros where zeros must be.
 * Little-endian. One request at a time. Any thread; no allocation. */
#ifndef VCFT_DISK_CONTROL_H
#define VCFT_DISK_CONTROL_H

#include "base/types.h"

#define CONTROL_MAGIC UINT32_C(0x43464356) /* "VCFC" */
#define CONTROL_REQUEST_BYTES 24u
#define CONTROL_ANSWER_BYTES 256u
#define CONTROL_TEXT_MAX (CONTROL_ANSWER_BYTES - 40u - 1u)

enum control_verb { CONTROL_PING = 1, CONTROL_SEAL, CONTROL_COMMIT, CONTROL_MERGE, CONTROL_ROLLBACK };

struct control_request { enum control_verb verb; uint64_t sequence; struct epoch_id epoch; };
struct control_answer {
	bool failed, damaged;   /* damaged: failed, too */
	uint64_t sequence;
	struct epoch_id open;
	uint64_t blocks, count;
	char text[CONTROL_TEXT_MAX + 1];   /* "" if there is none */
};

/* "seal", or NULL if there is no such verb. */
const char *control_verb_name(enum control_verb verb);
void control_request_encode(uint8_t out[static CONTROL_REQUEST_BYTES], const struct control_request *request);
bool control_request_decode(const uint8_t *in, size_t n, struct control_request *ret_request);
/* A text that is too long is cut. */
void control_answer_encode(uint8_t out[static CONTROL_ANSWER_BYTES], const struct control_answer *answer);
bool control_answer_decode(const uint8_t *in, size_t n, struct control_answer *ret_answer);

#endif
