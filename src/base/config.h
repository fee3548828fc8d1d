/* config.h - cluster.yaml and virtcftd.yaml: read, checked, refused with file, line and what was expected.
 *
 * The text is untrusted (it also comes from other hosts): at most CONFIG_TEXT_MAX bytes of UTF-8, one document, no anchors and aliases. Any thread. */
#ifndef VCFT_BASE_CONFIG_H
#define VCFT_BASE_CONFIG_H

#include "base/clock.h"
#include "base/identity.h"
#include "base/types.h"

#include <glib.h>

#define CONFIG_TEXT_MAX (480u * 1024)                                     /* bytes: it must fit a CONFIG message */
#define CONFIG_MEMORY_MIN (UINT64_C(1) << 20)                             /* bytes of a VM's memory */
#define CONFIG_MEMORY_MAX (UINT64_C(1) << 40)
#define CONFIG_CPUS_MAX 255u
#define CONFIG_INTERVAL_MIN (5 * NSEC_PER_MSEC)
#define CONFIG_INTERVAL_MAX (600 * NSEC_PER_SEC)

#define CONFIG_ERROR (config_error_quark())
enum config_error {
	CONFIG_ERROR_SYNTAX,   /* not YAML, or more of it than is read */
	CONFIG_ERROR_SCHEMA,   /* unknown or missing key, value of the wrong kind */
	CONFIG_ERROR_MEANING,  /* well-formed, but it cannot be so */
	CONFIG_ERROR_FILE,     /* a file that it names cannot be read */
};
GQuark config_error_quark(void);

struct config_host { char *name, *address; };
struct config_network { char *name, *uplink; bool commit; };              /* uplink NULL: none */
struct config_disk { char *image; };                                      /* absolute path */
struct config_nic { uint32_t network; uint8_t mac[6]; };
struct config_vm {
	char *name;
	uint64_t memory_bytes; unsigned cpus;
	char *machine, *cpu, *kernel, *initrd, *append;                   /* NULL: not given */
	struct config_disk *disks; unsigned disk_count;
	struct config_nic *nics; unsigned nic_count;
	char *host;                                                        /* preferred; NULL: anywhere */
	char **qemu;                                                       /* NULL-terminated; NULL: none */
};
struct config_cluster {
	char *name;
	nsec_t interval; unsigned backups;
	bool hold_when_degraded, verify;
	bool hot_pages;                       /* default true */
	struct config_host *hosts; unsigned host_count;                   /* 0: this machine alone */
	struct config_network *networks; unsigned network_count;
	struct config_vm *vms; unsigned vm_count;
};

/* Parse text (file: its name for messages; directory: relative paths are relative to it). check_files: images, kernels and initrds must be
 * readable here. On error NULL; the message has "file:line: what is wrong; what was expected". */
struct config_cluster *config_cluster_parse(const char *text, size_t n, const char *file, const char *directory, bool check_files,
                                            GError **error);
void config_cluster_free(struct config_cluster *cluster);


struct config_agent {
	char *name;             /* this host's; default: the hostname */
	char *group;            /* corosync | local; default local */
	char *address;          /* numeric IPv4 for tunnels and replication; default 127.0.0.1 */
	char *run_dir;          /* /run/virtcft */
	char *state_dir;        /* /var/lib/virtcft: disks, consoles, caches */
	char *ram_dir;          /* /dev/shm/virtcft: RAM files and images */
	uint16_t tunnel_port, replication_port;   /* 0: any */
	bool tls;               /* tunnels and replication under TLS; default: with corosync */
	char *pki_dir;          /* ca.pem, cert.pem, key.pem (base/tls.h); /etc/virtcft/pki */
	/* limits */
	uint64_t backup_memory; /* bytes of RAM images and stages that this host keeps for other hosts' VMs; default: half of the machine's memory */
	uint64_t backup_rate;   /* bytes/s: a backup that takes less, while more waits for it, is given up; default 2 MiB */
	nsec_t backup_timeout;  /* without any progress; default 3 s */
	uint64_t held_memory;   /* bytes of frames that one uplink holds; default 64 MiB */
	uint64_t queue_memory;  /* bytes of frames queued for one port; default 16 MiB */
	char *plugin_dir;       /* where virtcft-disk.so and virtcft-preload.so are; default: where they were installed or built */
	char *user;             /* as whom QEMU and nbdkit run; default virtcft */
	uint32_t user_base;     /* with it: VM n of the cluster runs as user and group user_base + n; 0: all as `user` */
	char *control_group;    /* its members may read status and events; NULL: root alone */
	struct identity identity;                 /* of `user`; by config_agent_identify() */
	gid_t control_gid;                        /* of `control_group`; likewise; 0: none */
};
/* file NULL or missing default file: all defaults. */
struct config_agent *config_agent_read(const char *file, GError **error);
/* The same of a text in memory; name stands in errors. */
struct config_agent *config_agent_parse(const char *text, size_t n, const char *name, GError **error);
void config_agent_free(struct config_agent *agent);
/* Look the user and the group up; what is missing is said with what to do. */
gboolean config_agent_identify(struct config_agent *agent, GError **error);
/* As whom QEMU and nbdkit of a VM run. */
struct identity config_agent_identity(const struct config_agent *agent, struct vm_id vm);

#endif
