// What operators do, with Apache Kafka's AdminClient; started as a single source file.
import java.util.*;
import java.util.concurrent.ExecutionException;
import org.apache.kafka.clients.admin.*;
import org.apache.kafka.common.*;
import org.apache.kafka.common.config.ConfigResource;

public class Operate {
    interface Call {
        void run() throws Exception;
    }

    static void refused(String what, Call call) throws Exception {
        try {
            call.run();
            System.out.println(what + " was done");
        } catch (ExecutionException e) {
            System.out.println(what + " " + e.getCause().getClass().getSimpleName());
        }
    }

    static void alter(Admin admin, ConfigResource topic, AlterConfigOp.OpType op, String name, String value)
            throws Exception {
        var change = new AlterConfigOp(new ConfigEntry(name, value), op);
        admin.incrementalAlterConfigs(Map.of(topic, List.of(change))).all().get();
    }

    public static void main(String[] arguments) throws Exception {
        var properties = new Properties();
        properties.put("bootstrap.servers", arguments[0]);
        try (var admin = Admin.create(properties)) {
            admin.createTopics(List.of(new NewTopic("shop", 1, (short) 1))).all().get();
            var topic = new ConfigResource(ConfigResource.Type.TOPIC, "shop");
            var first = new TopicPartition("shop", 0);

            admin.createPartitions(Map.of("shop", NewPartitions.increaseTo(3))).all().get();
            var described = admin.describeTopics(List.of("shop")).allTopicNames().get().get("shop");
            System.out.println("partitions " + described.partitions().size());

            alter(admin, topic, AlterConfigOp.OpType.SET, "retention.ms", "60000");
            alter(admin, topic, AlterConfigOp.OpType.APPEND, "cleanup.policy", "compact");
            var config = admin.describeConfigs(List.of(topic)).all().get().get(topic);
            var retention = config.get("retention.ms");
            System.out.println("retention.ms " + retention.value() + " " + retention.source());
            System.out.println("cleanup.policy " + config.get("cleanup.policy").value());
            var isr = config.get("min.insync.replicas");
            System.out.println("min.insync.replicas " + isr.value() + " " + isr.source());
            refused("unknown", () -> alter(admin, topic, AlterConfigOp.OpType.SET, "no.such", "1"));
            refused("invalid", () -> admin.createPartitions(Map.of("shop", NewPartitions.increaseTo(2))).all().get());

            var quorum = admin.describeMetadataQuorum().quorumInfo().get();
            var voters = quorum.voters().stream().map(QuorumInfo.ReplicaState::replicaId).toList();
            System.out.println("quorum leader " + quorum.leaderId() + " voters " + voters);

            var same = Optional.of(new NewPartitionReassignment(List.of(1)));
            admin.alterPartitionReassignments(Map.of(first, same)).all().get();
            System.out.println("reassigned");
            System.out.println("reassigning " + admin.listPartitionReassignments().reassignments().get());
            refused("none", () -> admin.alterPartitionReassignments(Map.of(first, Optional.empty())).all().get());

            System.out.println("elected " + admin.electLeaders(ElectionType.PREFERRED, null).partitions().get());
            var elected = admin.electLeaders(ElectionType.PREFERRED, Set.of(first)).partitions().get();
            System.out.println("not needed " + elected.get(first).get().getClass().getSimpleName());
            refused("alive", () -> admin.unregisterBroker(1).all().get());
            var voter = quorum.voters().get(0);
            refused("only", () -> admin.removeRaftVoter(1, voter.replicaDirectoryId()).all().get());
        }
    }
}
