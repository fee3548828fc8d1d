/* messages.h - what hosts say to each other: header, table and the group's messages.
 *
 * Every message, on every channel, starts with the same 12 bytes, little-endian:
 *
 *   0  u32  magic    MESSAGE_MAGIC
 *   4  u16  type     a number of messages.def
 *   6  u16  flags    0
 *   8  u32  length   bytes that follow, within the limits of the table
 *
 * M1 A header is accepted only with the right magic, zero flags, a type of the table that belongs to the channel it came
 *    in by, and a length within that type's limits. M2 A payload is accepted only if it ends exactly at its end. M3 Numbers
 *    out of range (host > VCFT_HOST_MAX, more VMs than VCFT_VM_MAX, epoch or generation > VCFT_NUMBER_MAX but for "not known" in STATE) are refused
 *    here, and texts that are no UTF-8 or have control characters, so that nobody after has to look.
 * Any thread; no allocation. */
#ifndef VCFT_BASE_MESSAGES_H
#define VCFT_BASE_MESSAGES_H

#include "base/types.h"

#define MESSAGE_MAGIC UINT32_C(0x31464356) /* "VCF1" */
#define MESSAGE_HEADER_BYTES 12u

enum message_channel { CHANNEL_GROUP, CHANNEL_TUNNEL, CHANNEL_REPLICATION };

enum message_type {
#define MESSAGE(channel, name, number, least, most, text) MESSAGE_##name = number,
#include "base/messages.def"
#undef MESSAGE
};

struct message_header { enum message_type type; uint32_t length; };

/* The table's name of a type ("BEGIN"), or NULL if there is no such type. */
const char *message_name(enum message_type type);
/* What the table says of a type, for docs and traces, or NULL. */
const char *message_text(enum message_type type);
/* Write the 12 bytes. length must be within the table's limits (MUST M1). */
void message_header_encode(uint8_t out[static MESSAGE_HEADER_BYTES], enum message_type type, size_t length);
/* Read the 12 bytes of a message that came in by channel; false: refuse the peer (M1). */
bool message_header_decode(const uint8_t in[static MESSAGE_HEADER_BYTES], enum message_channel channel,
                           struct message_header *ret_header);

/* ---- group messages ------------------------------------------------------------------------------------------- */

enum hello_state { HELLO_EMPTY = 0, HELLO_JOINED = 1 };

/* Where a VM runs and which hosts hold images of it. */
struct message_placement { struct host_id host; host_mask backups; };

/* What one host holds of one VM. All epochs 0 and complete false: nothing. */
struct message_holding {
	struct vm_id vm;
	struct epoch_id image;      /* committed image or shadow is at this epoch */
	struct epoch_id staged;     /* a stage whose checksum was right; 0: none */
	struct epoch_id complete;   /* first epoch at which the image has all pages; 0: never yet */
	bool live;                  /* the VM runs (or ran last) here */
};

/* How a VM stood at its last checkpoint: it ran, it waits for space on its host's disk, it has powered itself off. */
enum vm_stand { VM_RUNS, VM_WAITS, VM_OFF, VM_STAND_END };

/* What a VM's last committed checkpoint cost. Times in ns, sizes in bytes. */
struct message_stats { struct vm_id vm; uint64_t pause, dirty_pages, disk_blocks, raw_bytes, sent_bytes, commit; enum vm_stand stand; };

struct message {
	enum message_type type;
	struct generation generation;
	struct epoch_id epoch;          /* BEGIN STORED KNOWN ABORT STATS: r.  STATE: newest committed.  RECOVER: c */
	host_mask hosts;                /* BEGIN RECOVER: participants.  STATE: the membership it answers.  ABORT: failed backups */
	struct vm_id vm;                /* TROUBLE ABORT: VCFT_VM_MAX for "no one VM" */
	uint8_t reason;                 /* TROUBLE */
	uint32_t shortages;             /* STATS: what its sender is short of, a bit each (the agent's affair) */
	struct {                        /* HELLO */
		char name[VCFT_NAME_MAX + 1], address[VCFT_NAME_MAX + 1];
		uint16_t tunnel_port, replication_port;
		enum hello_state state;
	} hello;
	struct {                        /* CONFIG: borrowed from the buffer that was decoded, not ended by 0 */
		const char *directory, *text;
		uint32_t directory_bytes, text_bytes;
	} config;
	uint32_t vm_count;              /* entries of the array below that the type uses */
	union {
		struct message_placement placement[VCFT_VM_MAX];                 /* BEGIN RECOVER: index is the VM */
		struct { struct vm_id vm; host_mask complete; } stored[VCFT_VM_MAX]; /* STORED: backups whose image has all pages as of r */
		struct message_holding holding[VCFT_VM_MAX];                     /* STATE */
		struct message_stats stats[VCFT_VM_MAX];                         /* STATS */
	};
};

/* Largest encoded group message of a type other than CONFIG, header included. */
#define MESSAGE_GROUP_BYTES_MAX (MESSAGE_HEADER_BYTES + 14616u)

/* Bytes that encode() will need for m. */
size_t message_size(const struct message *m);
/* Encode header and payload; returns the bytes used, 0 if size is too small. */
size_t message_encode(const struct message *m, uint8_t *out, size_t size);
/* Decode one whole group message (header and payload, exactly n bytes); false: it is refused, *ret_message is undefined. */
bool message_decode(const uint8_t *in, size_t n, struct message *ret_message);

#endif
